//! Pure algorithms: rewards, advantages, filters, the objective, pass@k.
