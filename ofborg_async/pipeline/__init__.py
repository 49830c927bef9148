"""One job, from a delivery to what becomes of it. Knows ports only: no AMQP, git, nix, lock or process."""
