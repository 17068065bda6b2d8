"""Users' mistakes, in tables by subject: the command, its exit code, and the line it prints."""
