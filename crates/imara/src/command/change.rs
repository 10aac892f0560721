//! What commands that change something have in common: trying it first, and how they tell what they did.

use crate::output::{Outcome, print, print_json};
use serde_json::Value;
use std::fmt::Display;

/// Whether it is done, and how it is told.
#[derive(clap::Args)]
pub struct Change {
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
}

impl Change {
    /// Tells what was done, in the way that was asked for.
    pub fn report(&self, text: impl Display, document: &Value) -> Outcome {
        if self.json {
            print_json(document);
        } else if !self.quiet {
            print(text);
        }
        Outcome::Done
    }
}
