//! How a child ends
