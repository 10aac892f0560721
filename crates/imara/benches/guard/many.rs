//! Many new files at once: whether decisions on different files hold each other up, and whether a large one does.

use super::place::{Place, SIZE, imara};
use super::subject;
use super::table::{Row, Rows};
use super::work;
use imara_engine::lock;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Small files that are opened while nothing else happens, and as many while a large one is hashed.
const FEW: usize = 1500;
const LARGE: u64 = 1 << 30;

pub fn run(directory: &Path, rows: &mut Rows) {
    let place = Place::new(directory, (LARGE as usize * 2 + 20_000 * (SIZE + 4096)) as u64, 40_000);
    let crowd = place.small_files("crowd", 16_000, SIZE);
    let files = place.small_files("files", 2 * FEW, SIZE);
    std::fs::create_dir(place.inside("large")).expect("a folder");
    let large = place.inside("large/file");
    // Without holes: that is what is read.
    let block = vec![1; 1 << 20];
    let mut file = File::create(&large).expect("a file");
    (0..LARGE >> 20).for_each(|_| std::io::Write::write_all(&mut file, &block).expect("room"));
    drop(file);
    ["crowd", "files", "large"].iter().for_each(|folder| place.hash(folder));
    place.settle();
    let policy = place.policy("policy", &["measure func=FILE_CHECK", "appraise func=FILE_CHECK"]);
    together(&place, &policy, &crowd, rows);
    beside_a_large_one(&place, &policy, &files, &large, rows);
}

/// While a file of 1 GiB is hashed, small ones are judged.
fn beside_a_large_one(place: &Place, policy: &Path, files: &[PathBuf], large: &Path, rows: &mut Rows) {
    let [mut median, mut worst] = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        let guard = subject::guard(place, policy, &[]);
        let (alone, beside) = files.split_at(FEW);
        let alone = work::opens_one_by_one(alone);
        let hashing = AtomicBool::new(true);
        let beside = std::thread::scope(|scope| {
            scope.spawn(|| {
                drop(File::open(large).expect("an open"));
                hashing.store(false, Ordering::SeqCst);
            });
            // It is under way.
            std::thread::sleep(std::time::Duration::from_millis(20));
            let mut times = Vec::new();
            for path in beside {
                if !hashing.load(Ordering::SeqCst) {
                    break;
                }
                times.extend(work::opens_one_by_one(std::slice::from_ref(path)));
            }
            times
        });
        drop(guard);
        median.push((work::median(beside.clone()) - work::median(alone.clone())) / 1e3);
        worst.push((work::percentile(beside, 99) - work::percentile(alone, 99)) / 1e3);
    }
    let (median, worst) = (work::median(median), work::median(worst));
    let (name, needed) = ("first open while 1 GiB is hashed: added", "< 1000 µs".into());
    rows.push(Row::held_to(name, format!("{median:.0} µs"), needed, median < 1000.0));
    rows.push(Row::told("  the same at the 99th of 100", format!("{worst:.0} µs")));
}

/// Threads that open new files at the same time.
fn together(place: &Place, policy: &Path, files: &[PathBuf], rows: &mut Rows) {
    const THREADS: usize = 8;
    let guard = subject::guard(place, policy, &[]);
    let start = std::time::Instant::now();
    std::thread::scope(|scope| {
        for some in files.chunks(files.len() / THREADS) {
            scope.spawn(|| work::opens_one_by_one(some));
        }
    });
    let took = start.elapsed().as_secs_f64();
    let output = imara().args(["status", "--json", "--runtime-dir"]).arg(place.at("run")).output().expect("status");
    drop(guard);
    let measured = format!("{:.0} a second", files.len() as f64 / took);
    rows.push(Row::told("new files of 8 KiB by 8 threads", measured));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let accesses = status["counts"]["accesses"].as_u64().expect("a count") as f64;
    for waits in lock::ALL {
        let count = status["waits"][waits.name].as_u64().expect("a count") as f64;
        let share = 100.0 * count / accesses;
        let name = format!("  decisions that waited for another's lock: {}", waits.name);
        let measured = format!("{count} ({share:.2} %)");
        match waits.name {
            // Its order is the PCR's.
            "list" => rows.push(Row::told(&name, measured)),
            _ => rows.push(Row::held_to(&name, measured, "≤ 1 %".into(), share <= 1.0)),
        }
    }
}
