//! What the examples share: nothing but their generated schemas.
