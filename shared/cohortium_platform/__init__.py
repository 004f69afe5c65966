"""What the platform's services have in common above the kit and the protocol: who they are, and how they start."""
