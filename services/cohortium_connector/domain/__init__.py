"""What the connector decides, as pure code: a window's states, what to work on, what the hospital's policy allows."""
