"""One function per message: load, decide, save with what is to be sent, all in the caller's transaction."""
