from .policy import VLAPolicy as VLAPolicy
