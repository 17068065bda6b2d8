"""Users' mistakes, one table a subject: the command, its exit code, and the line that it prints."""
