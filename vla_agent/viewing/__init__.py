"""Episodes as pages to look at."""
