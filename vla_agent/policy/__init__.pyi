from .loading import BackboneLoader as BackboneLoader
from .loading import load_backbone as load_backbone
from .loading import load_processor as load_processor
from .loading import register_backbone as register_backbone
from .policy import VLAPolicy as VLAPolicy
