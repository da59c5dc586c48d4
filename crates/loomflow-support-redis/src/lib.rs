//! What backends on Redis share, so that none of it is written twice.

#![forbid(unsafe_code)]
