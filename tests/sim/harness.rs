//! The parts of the integration tests' harness that start a PostgreSQL.

#[expect(
    dead_code,
    reason = "the simulator needs one server and nothing else of it"
)]
#[path = "../it/harness/postgres.rs"]
pub mod postgres;

pub mod store {
    /// A folder that goes away, in memory where there is such a place.
    pub fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        folder.unwrap()
    }
}
