"""From LIBERO's files to a compiled task: read once through robosuite, kept on disk, drawn from."""
