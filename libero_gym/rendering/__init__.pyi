from .gl import RenderingError as RenderingError
from .renderer import RENDERERS as RENDERERS
from .renderer import check_image_size as check_image_size
from .renderer import gl_renderer as gl_renderer
from .renderer import make_gl_context as make_gl_context
from .renderer import release as release
from .renderer import render as render
