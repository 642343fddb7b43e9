"""The stages that measure a subject: read, forward, twin and parameter space. Each fills columns of the tables."""
