from .advantages import Advantages as Advantages
from .advantages import estimate_advantages as estimate_advantages
from .awr import AWR as AWR
from .filtered import FilteredCloning as FilteredCloning
from .interface import OfflineMethod as OfflineMethod
from .tags import TaggedCloning as TaggedCloning
from .values import ValueSettings as ValueSettings
