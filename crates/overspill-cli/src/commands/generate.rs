//! `overspill generate`: what a package has beside the binary, made from the definition of the
//! command line.

mod man;
mod manual;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap_complete::env::Shells;

use crate::complete;
use crate::failure::{Failure, Outcome};

/// Write the man pages, or what shells complete by
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// A man page for each command
    Man {
        /// The folder to write to
        folder: PathBuf,
        /// The date that the pages bear
        #[arg(long, value_name = "YYYY-MM-DD", default_value = "")]
        date: String,
    },
    /// What bash, zsh and fish load to complete commands, options and services
    Completions {
        /// The folder to write to
        folder: PathBuf,
    },
}

/// zsh loads the script at the first TAB, as the function that is to complete: what it defines
/// would be asked from the second on.
const AT_FIRST_TAB: &str = "
if [[ $funcstack[1] == _overspill ]]; then
    _clap_dynamic_completer_overspill
fi
";

pub(crate) fn run(args: &Args) -> Outcome {
    match &args.what {
        What::Man { folder, date } => {
            man::pages(date).try_for_each(|(name, page)| write(folder, &name, &page))
        }
        What::Completions { folder } => {
            // Each under the name that its shell looks for.
            [("bash", "overspill"), ("zsh", "_overspill"), ("fish", "overspill.fish")]
                .into_iter()
                .try_for_each(|(shell, file)| write(&folder.join(shell), file, &completion(shell)))
        }
    }
}

fn completion(shell: &str) -> Vec<u8> {
    let mut script = Vec::new();
    Shells::builtins()
        .completer(shell)
        .expect("a shell that clap knows")
        .write_registration(complete::VARIABLE, "overspill", "overspill", "overspill", &mut script)
        .expect("memory takes what is written");
    if shell == "zsh" {
        script.extend_from_slice(AT_FIRST_TAB.as_bytes());
    }
    script
}

fn write(folder: &Path, name: &str, text: &[u8]) -> Outcome {
    let path = folder.join(name);
    fs::create_dir_all(folder).and_then(|()| fs::write(&path, text)).map_err(|error: io::Error| {
        let path = path.display();
        Failure::new(format!("cannot write {path}: {error}; give a folder that can be written to"))
    })
}
