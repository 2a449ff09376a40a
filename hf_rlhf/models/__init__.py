"""Models: loading, adapters on one frozen backbone, the policy with its value head, reward models."""
