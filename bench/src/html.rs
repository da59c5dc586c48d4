//! The report as one self-contained page: figures, latency and memory, nothing loaded from anywhere.

use std::fmt::Write as _;

use crate::report::Report;
use crate::stats::Sample;
use crate::table::rows;

const STYLE: &str = "
:root{--ink:#1c2430;--soft:#5b6675;--line:#dde2e9;--card:#fff;--page:#f5f7fa;--blue:#2f6fde;--good:#177a48;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e7ebf0;--soft:#9aa6b5;--line:#313a46;--card:#1b222b;--page:#12171d;
--blue:#6ea1ff;--good:#5bc98f;--bad:#ff8a80}}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:960px;margin:0 auto;padding:32px 20px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:16px;margin:28px 0 10px}p{color:var(--soft);margin:0 0 16px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.card b{display:block;font-size:22px;font-variant-numeric:tabular-nums}.card span{color:var(--soft);font-size:13px}
table{width:100%;border-collapse:collapse;background:var(--card);border:1px solid var(--line);border-radius:10px}
th,td{text-align:left;padding:7px 14px;border-top:1px solid var(--line);vertical-align:top}
th{width:150px;color:var(--soft);font-weight:500}td.n{text-align:right;font-variant-numeric:tabular-nums}
.good{color:var(--good)}.bad{color:var(--bad)}
svg{width:100%;height:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
svg text{font:12px system-ui,sans-serif;fill:var(--soft)}svg .axis{stroke:var(--line)}
svg .bar{fill:var(--blue)}svg .line{fill:none;stroke:var(--blue);stroke-width:2}svg .dot{fill:var(--blue)}
";

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 90.0;
const BOTTOM: f64 = 36.0;
const TOP: f64 = 18.0;

/// The page.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut out = String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">");
    let _ = write!(
        out,
        "<meta name=\"viewport\" content=\"width=device-width\"><title>Tenant load</title><style>{STYLE}</style><main>"
    );
    let good = report.failures.is_empty();
    let (class, verdict) = if good { ("good", "passed") } else { ("bad", "failed") };
    let all = rows(report);
    let _ = write!(
        out,
        "<h1>Tenant load <span class=\"{class}\">{verdict}</span></h1><p>{}</p>",
        Text(&all[0].1)
    );
    if !good {
        out.push_str("<ul class=\"bad\">");
        for failure in &report.failures {
            let _ = write!(out, "<li>{}</li>", Text(failure));
        }
        out.push_str("</ul>");
    }
    cards(&mut out, report);
    out.push_str("<h2>Latency of a run</h2>");
    latency(&mut out, report);
    out.push_str("<h2>Memory against tenants, audit log left out</h2>");
    memory(&mut out, report);
    out.push_str("<h2>Figures</h2><table>");
    for (name, value) in &all {
        let _ = write!(out, "<tr><th>{}</th><td>{}</td></tr>", Text(name), Text(value));
    }
    out.push_str("</table>");
    channels(&mut out, report);
    out.push_str("</main></html>\n");
    out
}

fn cards(out: &mut String, report: &Report) {
    let cards = [
        (format!("{:.1} us", report.cpu_us_per_run), "CPU per run"),
        (format!("{:.0}", report.runs_per_s), "runs per second"),
        (format!("{:.1} KiB", report.rss_bytes.per_user as f64 / 1024.0), "memory per tenant"),
        (report.isolation.violations.to_string(), "isolation violations"),
        (report.budget.mismatches.to_string(), "budget mismatches"),
        (format!("{} / {}", report.audit.entries, report.audit.expected), "audit entries"),
    ];
    out.push_str("<div class=\"cards\">");
    for (figure, name) in &cards {
        let _ = write!(out, "<div class=\"card\"><b>{figure}</b><span>{name}</span></div>");
    }
    out.push_str("</div>");
}

fn latency(out: &mut String, report: &Report) {
    let l = &report.latency_us;
    let bars = [("p50", l.p50), ("p90", l.p90), ("p99", l.p99), ("p99.9", l.p999), ("max", l.max)];
    let most = l.max.max(1) as f64;
    let height = 34.0 * bars.len() as f64 + 16.0;
    let _ =
        write!(out, "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"latency percentiles\">");
    for (n, (name, value)) in bars.iter().enumerate() {
        let y = 12.0 + 34.0 * n as f64;
        let width = ((WIDTH - LEFT - 110.0) * *value as f64 / most).max(1.0);
        let _ = write!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\
             <rect class=\"bar\" x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"22\" rx=\"3\"/>\
             <text x=\"{:.1}\" y=\"{}\">{:.3} ms</text>",
            LEFT - 10.0,
            y + 16.0,
            LEFT + width + 8.0,
            y + 16.0,
            *value as f64 / 1e3
        );
    }
    out.push_str("</svg>");
}

fn memory(out: &mut String, report: &Report) {
    let samples = &report.rss_samples;
    if samples.len() < 2 {
        out.push_str("<p>Too few samples.</p>");
        return;
    }
    let grown = |s: &Sample| s.rss as f64 - s.audit as f64;
    let (low, high) = samples.iter().map(grown).fold((f64::MAX, f64::MIN), |(a, b), y| (a.min(y), b.max(y)));
    let span = (high - low).max(1.0);
    let most = samples.iter().map(|s| s.users).max().unwrap_or(1) as f64;
    let place = |s: &Sample| {
        let x = LEFT + (WIDTH - LEFT - 20.0) * s.users as f64 / most;
        let y = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (grown(s) - low) / span;
        (x, y)
    };
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"memory against tenants\">"
    );
    for (at, value) in [(TOP, high), (HEIGHT - BOTTOM, low)] {
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at}\" y2=\"{at}\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{:.1} MiB</text>",
            WIDTH - 20.0,
            LEFT - 8.0,
            at + 4.0,
            value / 1_048_576.0
        );
    }
    let points: Vec<String> = samples.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = write!(out, "<polyline class=\"line\" points=\"{}\"/>", points.join(" "));
    for sample in samples {
        let (x, y) = place(sample);
        let _ = write!(out, "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
    }
    let _ = write!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{most:.0} tenants; {:.0} bytes each by the fit (r2 {:.3})</text></svg>",
        WIDTH - 20.0,
        HEIGHT - 10.0,
        report.rss_fit.slope_bytes_per_user,
        report.rss_fit.r2
    );
}

fn channels(out: &mut String, report: &Report) {
    if report.isolation.channels.is_empty() {
        return;
    }
    out.push_str("<h2>What tenants received</h2><table><tr><th>way</th><td class=\"n\">pieces searched</td>");
    out.push_str("<td class=\"n\">own canaries</td><td class=\"n\">others' canaries</td></tr>");
    for c in &report.isolation.channels {
        let class = if c.foreign == 0 { "n" } else { "n bad" };
        let _ = write!(
            out,
            "<tr><th>{}</th><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"{class}\">{}</td></tr>",
            c.channel, c.probes, c.own, c.foreign
        );
    }
    out.push_str("</table>");
}

/// Text inside an element.
struct Text<'t>(&'t str);

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(Text("a<b>&c").to_string(), "a&lt;b&gt;&amp;c");
    }
}
