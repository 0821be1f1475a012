//! Assertions of workload identity federation.
