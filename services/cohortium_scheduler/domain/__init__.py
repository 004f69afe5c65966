"""What the scheduler decides, as pure code: a window's states, when a cohort is bound, what follows a window."""
