"""The toy model of superposition: training, measures, sweeps, and the published claims."""
