"""One function for each message: load, advance, save with what is to be sent, in the caller's transaction."""
