//! The progress bar: counted by the workers, drawn by a task of its own, and nothing at all with `--quiet`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Counts runs and shows them.
#[derive(Clone, Debug)]
pub struct Progress {
    done: Arc<AtomicU64>,
    bar: ProgressBar,
}

impl Progress {
    /// A bar over `runs`, on stderr; hidden when `quiet`.
    #[must_use]
    pub fn new(runs: u64, quiet: bool) -> Self {
        Self::over(runs, "runs", quiet)
    }

    /// A bar over so many of what is named; 0 where nobody knows how many there will be.
    #[must_use]
    pub fn over(total: u64, what: &str, quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let style = ProgressStyle::with_template(&if total == 0 {
            format!("{{pos}} {what}  {{per_sec}}  {{elapsed}}")
        } else {
            format!("{{bar:40}} {{pos}}/{{len}} {what}  {{per_sec}}  {{elapsed}} ({{eta}} left)")
        });
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Self { done: Arc::default(), bar }
    }

    /// Counts one run. Costs one atomic addition.
    pub fn tick(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Draws until the guard is dropped, if there is anything to draw on.
    #[must_use]
    pub fn draw(&self) -> Drawing {
        let task = (!self.bar.is_hidden()).then(|| {
            let (done, bar) = (self.done.clone(), self.bar.clone());
            tokio::spawn(async move {
                loop {
                    bar.set_position(done.load(Ordering::Relaxed));
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            })
        });
        Drawing { task, bar: self.bar.clone() }
    }
}

/// While this lives, the bar is drawn.
#[derive(Debug)]
pub struct Drawing {
    task: Option<tokio::task::JoinHandle<()>>,
    bar: ProgressBar,
}

impl Drop for Drawing {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        self.bar.finish_and_clear();
    }
}
