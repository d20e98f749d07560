"""What makes newer versions of MuJoCo give LIBERO's benchmark, and how exact that is."""
