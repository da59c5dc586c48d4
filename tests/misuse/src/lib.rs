//! What must not compile: the pairs are in `ui`, the test beside them.

#![forbid(unsafe_code)]
