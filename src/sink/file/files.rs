//! The files of a sink that are open, and a batch written to them: all of it or nothing.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::batch::{Answers, Batch, Group, not_sent};
use super::log::{Log, LogError};
use super::{Checked, MOST_OPEN, tail};
use crate::retry::{Scope, Verdict};
use crate::sink::Permit;
use crate::sink::permit::refused;

/// What is open, and what is not known for sure.
pub(super) struct Files {
    settings: Checked,
    pub(super) open: HashMap<PathBuf, Log>,
    /// Ids of lines that could not be taken back: they are looked for before they are written again.
    doubtful: HashSet<String>,
}

/// What was found in files that are written no more, for as long as one batch takes.
type Elsewhere = HashMap<PathBuf, HashSet<String>>;

impl LogError {
    /// The verdict on what has not been written because of it.
    fn verdict(&self) -> Verdict {
        if matches!(self, Self::Refused) {
            return refused();
        }
        let why = self.to_string();
        if self.is_a_persons_business() {
            return Verdict::Broken { why };
        }
        not_sent(why, Scope::Sink)
    }
}

impl Files {
    pub(super) fn new(settings: Checked) -> Self {
        Self {
            settings,
            open: HashMap::new(),
            doubtful: HashSet::new(),
        }
    }

    /// Writes a batch, a chunk of files at a time. A failure ends it; a path that cannot be written
    /// stops only what is for it.
    pub(super) fn write(&mut self, batch: Batch, now: Timestamp, permit: &Permit) -> Vec<Verdict> {
        let mut answers = Answers::new(batch.count);
        let mut elsewhere = Elsewhere::new();
        for mut chunk in batch.chunks {
            let written = self.open(&mut chunk, &mut answers, now).and_then(|()| {
                self.write_chunk(&mut chunk, &mut answers, &mut elsewhere, now, permit)
            });
            if let Err(error) = written {
                return answers.finish(&error.verdict());
            }
        }
        let why = "it was left out".to_owned();
        answers.finish(&not_sent(why, Scope::Notice))
    }

    /// Opens all files of a chunk before anything is written. Where values make the path, one that
    /// cannot be is the trouble of its own lines.
    fn open(
        &mut self,
        chunk: &mut [Group],
        answers: &mut Answers,
        now: Timestamp,
    ) -> Result<(), LogError> {
        if self.open.len() + chunk.len() > MOST_OPEN {
            self.open.clear();
        }
        let mut refused = Vec::new();
        for (place, group) in chunk.iter().enumerate() {
            match self.open_one(&group.path, now) {
                Err(error) if error.is_about_the_path() && self.settings.template.spreads() => {
                    refused.push((place, error));
                }
                opened => opened?,
            }
        }
        answers.refuse(chunk, &refused);
        Ok(())
    }

    fn open_one(&mut self, path: &Path, now: Timestamp) -> Result<(), LogError> {
        if self.open.get(path).is_some_and(Log::is_in_place) {
            return Ok(());
        }
        self.open.remove(path);
        let settings = &self.settings;
        let fixed = settings.template.fixed_folder();
        let log = Log::open(path, &fixed, settings.mode, &settings.rotation, now)?;
        self.open.insert(path.to_owned(), log);
        Ok(())
    }

    /// Writes all of them or none: lanes may spread over files, and their order must hold.
    fn write_chunk(
        &mut self,
        chunk: &mut [Group],
        answers: &mut Answers,
        elsewhere: &mut Elsewhere,
        now: Timestamp,
        permit: &Permit,
    ) -> Result<(), LogError> {
        chunk
            .iter_mut()
            .try_for_each(|group| self.look_back(group, elsewhere))?;
        let mut begun = 0;
        let written = self.write_groups(chunk, &mut begun, now, permit);
        let synced = written.and_then(|()| {
            tracing::trace!(target: "runbell::point", "written");
            chunk
                .iter()
                .filter(|group| !group.lines.is_empty())
                .try_for_each(|group| self.log(&group.path)?.sync())
        });
        if let Err(error) = synced {
            for group in chunk.iter().take(begun) {
                self.take_back(group, &error, answers);
            }
            return Err(error);
        }
        tracing::trace!(target: "runbell::point", "synced");
        for group in chunk {
            for line in &group.lines {
                answers.sent(line);
                self.doubtful.remove(&line.id);
            }
            if let Some(log) = self.open.get_mut(&group.path) {
                let written = group.lines.iter_mut().filter(|line| !line.is_there);
                log.keep(written.map(|line| std::mem::take(&mut line.id)));
            }
        }
        Ok(())
    }

    /// Marks what an earlier try has written.
    fn look_back(&mut self, group: &mut Group, elsewhere: &mut Elsewhere) -> Result<(), LogError> {
        for line in &mut group.lines {
            if !line.may_be_there && !self.doubtful.contains(&line.id) {
                continue;
            }
            let log = self.open.get_mut(&group.path).ok_or(LogError::Vanished)?;
            line.is_there = log.has(&line.id)?
                || line.elsewhere.iter().any(|path| {
                    let known = elsewhere.entry(path.clone());
                    let ids = known.or_insert_with_key(|path| tail::ids_of_another(path));
                    ids.contains(&line.id)
                });
        }
        Ok(())
    }

    fn write_groups(
        &mut self,
        chunk: &[Group],
        begun: &mut usize,
        now: Timestamp,
        permit: &Permit,
    ) -> Result<(), LogError> {
        for group in chunk {
            *begun += 1;
            if !group.lines.is_empty() {
                self.log(&group.path)?.write(&group.pieces(), now, permit)?;
            }
        }
        Ok(())
    }

    /// Cuts a file back to what it was. Where that fails too its lines may be there or not.
    fn take_back(&mut self, group: &Group, error: &LogError, answers: &mut Answers) {
        let Some(mut log) = self.open.remove(&group.path) else {
            return;
        };
        if log.cut_back().is_ok() {
            self.open.insert(group.path.clone(), log);
            return;
        }
        // Opened anew it will read its tail, to see what is there.
        let why = format!("{error}; what was written could not be taken back");
        for line in group.lines.iter().filter(|line| !line.is_there) {
            answers.unknown(line, why.clone());
            self.doubtful.insert(line.id.clone());
        }
    }

    fn log(&mut self, path: &Path) -> Result<&mut Log, LogError> {
        self.open.get_mut(path).ok_or(LogError::Vanished)
    }
}
