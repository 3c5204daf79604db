"""What is wrong with a cluster or an app, why, and what to do: checks, each with its evidence."""
