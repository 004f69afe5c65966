"""One function per message: load, decide, save with the messages that follow, all in the caller's transaction."""
