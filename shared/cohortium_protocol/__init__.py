"""The secure sum SA/1, its documents and its log: cryptography and arithmetic, bytes in, bytes out."""
