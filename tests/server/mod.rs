//! The real server over real sockets.

mod client;
mod crash;
mod jobs;
mod load;
mod schema;
mod security;
mod videos;
