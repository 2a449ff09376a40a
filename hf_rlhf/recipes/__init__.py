"""One typed function per stage. The command line, the launch scripts and your imports call the same ones."""
