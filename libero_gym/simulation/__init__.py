"""The lean core: a compiled task steps, resets and says whether its goal holds; no robosuite, no frames."""
