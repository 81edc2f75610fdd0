"""A workload: model, size, batch source, dtype and mode, made into steps that are seeded, hashed and repeatable."""
