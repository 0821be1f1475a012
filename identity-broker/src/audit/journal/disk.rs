//! The file that is written, and in tests what may go wrong with it.

use std::{
    fs::{File, Metadata},
    io::{self, Write as _},
};

use super::{JournalConfig, directory::Directory};

/// A file of the journal.
#[derive(Debug)]
pub(super) struct JournalFile {
    file: File,
    #[cfg(test)]
    faults: faults::Faults,
}

impl JournalFile {
    #[cfg_attr(not(test), expect(unused_variables, reason = "faults are the tests'"))]
    pub(super) fn new(file: File, config: &JournalConfig) -> Self {
        Self {
            file,
            #[cfg(test)]
            faults: config.faults.clone(),
        }
    }

    pub(super) fn create(directory: &Directory, number: u64, config: &JournalConfig) -> io::Result<Self> {
        #[cfg(test)]
        config.faults.meet(faults::What::Create)?;
        Ok(Self::new(directory.create(number)?, config))
    }

    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(test)]
        let bytes = self.faults.shorten(bytes)?;
        (&self.file).write(bytes)
    }

    pub(super) fn set_len(&self, length: u64) -> io::Result<()> {
        #[cfg(test)]
        self.faults.meet(faults::What::Cut)?;
        self.file.set_len(length)
    }

    pub(super) fn sync_data(&self) -> io::Result<()> {
        #[cfg(test)]
        self.faults.meet(faults::What::Sync)?;
        self.file.sync_data()
    }

    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }
}

#[cfg(test)]
pub(super) mod faults {
    use std::{
        collections::VecDeque,
        io,
        sync::{Arc, Condvar, Mutex},
    };

    /// What is done to a file.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum What {
        Create,
        Write,
        Cut,
        Sync,
    }

    /// What happens instead.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum How {
        Fails,
        /// Only so many bytes are taken.
        Short(usize),
        /// It waits until the test lets go.
        Hangs,
    }

    /// What goes wrong next, in order. Shared with the test.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Faults(Arc<(Mutex<State>, Condvar)>);

    #[derive(Debug, Default)]
    struct State {
        plan: VecDeque<(What, How)>,
        hanging: usize,
        let_go: bool,
    }

    impl Faults {
        pub(crate) fn plan(&self, faults: &[(What, How)]) {
            self.0.0.lock().unwrap().plan.extend(faults);
        }

        pub(crate) fn is_over(&self) -> bool {
            self.0.0.lock().unwrap().plan.is_empty()
        }

        pub(crate) fn is_hanging(&self) -> bool {
            self.0.0.lock().unwrap().hanging > 0
        }

        pub(crate) fn let_go(&self) {
            self.0.0.lock().unwrap().let_go = true;
            self.0.1.notify_all();
        }

        fn next(&self, what: What) -> Option<How> {
            let mut state = self.0.0.lock().unwrap();
            let (_, how) = state.plan.pop_front_if(|(next, _)| *next == what)?;
            if how == How::Hangs {
                state.hanging += 1;
                state = self.0.1.wait_while(state, |state| !state.let_go).unwrap();
                state.hanging -= 1;
            }
            Some(how)
        }

        pub(crate) fn meet(&self, what: What) -> io::Result<()> {
            match self.next(what) {
                Some(How::Fails) => Err(io::Error::other(format!("{what:?} fails, says the test"))),
                _ => Ok(()),
            }
        }

        pub(crate) fn shorten<'a>(&self, bytes: &'a [u8]) -> io::Result<&'a [u8]> {
            match self.next(What::Write) {
                Some(How::Fails) => Err(io::Error::other("Write fails, says the test")),
                Some(How::Short(taken)) => Ok(&bytes[..taken.min(bytes.len())]),
                _ => Ok(bytes),
            }
        }
    }
}
