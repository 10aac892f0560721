//! What was measured, beside what is needed.

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: String,
    /// With its unit, and how far the rounds lie apart.
    pub measured: String,
    /// Empty where nothing is asked.
    pub needed: String,
    /// `None` where nothing is asked, or it could not be measured.
    pub met: Option<bool>,
}

impl Row {
    /// Something to compare with, of which nothing is asked.
    pub fn told(name: &str, measured: String) -> Self {
        Self { name: name.into(), measured, needed: String::new(), met: None }
    }

    pub fn held_to(name: &str, measured: String, needed: String, met: bool) -> Self {
        Self { name: name.into(), measured, needed, met: Some(met) }
    }

    /// From the process of a section to the one that prints.
    fn hand_over(&self) {
        let met = self.met.map_or("-", |met| if met { "yes" } else { "no" });
        println!("row\t{}\t{}\t{}\t{met}", self.name, self.measured, self.needed);
    }

    /// What [`Self::hand_over`] printed.
    pub fn taken_over(line: &str) -> Option<Self> {
        let ["row", name, measured, needed, met] = line.split('\t').collect::<Vec<_>>()[..] else {
            return None;
        };
        let met = match met {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        };
        Some(Self { name: name.into(), measured: measured.into(), needed: needed.into(), met })
    }
}

/// The rows of a section, in its process: each is told at once, so that it counts even if the section does not come to its end.
pub struct Rows;

impl Rows {
    pub fn push(&mut self, row: Row) {
        row.hand_over();
    }
}

/// Prints the rows of a section.
pub fn print(rows: &[Row]) {
    println!("  {:<58} {:<34} {:<22} met", "", "measured", "needed");
    for row in rows {
        let met = row.met.map_or("", |met| if met { "yes" } else { "NO" });
        println!("  {:<58} {:<34} {:<22} {met}", row.name, row.measured, row.needed);
    }
}

/// How much of what is asked is met.
pub fn summary(rows: &[Row]) {
    let asked = rows.iter().filter(|row| row.met.is_some()).count();
    let missed: Vec<&str> = rows.iter().filter(|row| row.met == Some(false)).map(|row| row.name.as_str()).collect();
    println!("\n{} of {asked} met", asked - missed.len());
    for name in missed {
        println!("  not met: {name}");
    }
}
