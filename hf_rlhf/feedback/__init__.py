"""Human feedback: who gave it, what they preferred, and simulated people for tests and demonstrations."""
