//! Schema compiler driver and code generator.
