"""What tests and simulations need beside the real parts: a manual clock, a cutting proxy, private servers, signers."""
