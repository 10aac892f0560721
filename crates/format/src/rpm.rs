//! What RPM keeps of installed packages: their headers, in a database.
//!
//! | file | concept |
//! |---|---|
//! | `rpm/header.rs` | a header: tags and values, of which the package's maker signed some |
//! | `rpm/package.rs` | what a header says of a package and its files |
//! | `rpm/ndb.rs` | the database `Packages.db`; that in `rpmdb.sqlite` is read by [`crate::sqlite`], the table is `Packages` |

pub mod header;
pub mod ndb;
pub mod package;
