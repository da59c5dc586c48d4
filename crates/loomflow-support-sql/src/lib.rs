//! What backends on SQL databases share, so that none of it is written twice.

#![forbid(unsafe_code)]
