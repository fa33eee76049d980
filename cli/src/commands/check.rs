//! `check`: one line for each question, saying that it is in order or what to do.
//!
//! Promises: all questions are asked; the exit code is the number of the first answer that is wrong.

use pgcairn_engine::actions::{self, CheckItem, CheckOptions, Verdict};
use serde_json::{Value, json};

use super::{clusters, push_spool, repositories, stanza, threads};
use crate::clock;
use crate::error::Error;
use crate::report;
use crate::settings::Settings;

pub(super) fn run(settings: &Settings) -> Result<u8, Error> {
    let options = CheckOptions {
        stanza: stanza(settings).to_owned(),
        spool: settings.flag("archive-async").then(|| push_spool(settings)),
        archive_check: settings.flag("archive-check"),
        archive_mode_check: settings.flag("archive-mode-check"),
        archive_timeout: settings.duration("archive-timeout"),
        threads: threads(settings),
        now_ms: clock::now_ms(),
    };
    let places = repositories::places(settings)?;
    let answers: Vec<Answer> = actions::check(&places, clusters(settings)?, &options)
        .into_iter()
        .map(Answer::of)
        .collect();
    if settings.text("output") == Some("json") {
        let items: Value = answers.iter().map(Answer::json).collect();
        report::to_stdout(&items.to_string())?;
    } else {
        let lines: String = answers.iter().map(Answer::line).collect();
        report::to_stdout(&lines)?;
    }
    Ok(answers
        .iter()
        .map(|answer| answer.code)
        .find(|code| *code != 0)
        .unwrap_or(0))
}

/// An answer as it is told.
struct Answer {
    name: String,
    status: &'static str,
    code: u8,
    text: String,
    hints: Vec<String>,
}

impl Answer {
    fn of(item: CheckItem) -> Self {
        let name = item.name;
        match item.verdict {
            Verdict::Fine(text) => Answer {
                name,
                status: "ok",
                code: 0,
                text,
                hints: Vec::new(),
            },
            Verdict::Skipped(why) => Answer {
                name,
                status: "skipped",
                code: 0,
                text: why.to_owned(),
                hints: Vec::new(),
            },
            Verdict::Wrong(error) => {
                let error = Error::Engine(error);
                Answer {
                    name,
                    status: "wrong",
                    code: error.code(),
                    text: report::failure_line(&error),
                    hints: error.hints(),
                }
            }
        }
    }

    fn line(&self) -> String {
        let answer = format!("{:<8}{}: {}\n", self.status, self.name, self.text);
        let hints = self
            .hints
            .iter()
            .map(|hint| format!("        what to do: {hint}\n"));
        std::iter::once(answer).chain(hints).collect()
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "status": self.status,
            "code": self.code,
            "message": self.text,
            "hint": self.hints,
        })
    }
}
