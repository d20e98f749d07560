from .compile import compile_task as compile_task
from .compile import visual_model as visual_model
from .draws import fixture_draw as fixture_draw
from .placements import sampled_state as sampled_state
