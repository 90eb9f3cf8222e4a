//! What the schemas of this package become.

bowline::include_schemas!();
