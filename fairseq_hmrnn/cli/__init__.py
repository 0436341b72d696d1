"""The command fairseq-hmrnn: a module for each of its commands, their arguments, the files that they read and write,
and one handler for the errors that a user can fix."""
