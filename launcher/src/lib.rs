//! The lockstep binary: resolves the model, spawns, supervises and restarts the roles.
//!
//! In the order a start takes: what was typed ([`args`]), what it means ([`config`]), what memory it takes
//! ([`memory`]), which commands that makes ([`plan`]), and the shell that runs them ([`run`]) as the
//! [`supervisor`] says.

pub mod args;
pub mod budget;
pub mod config;
pub mod detect;
mod environment;
pub mod error;
mod foreign;
pub mod hub;
pub mod memory;
mod news;
mod output;
pub mod passthrough;
pub mod plan;
mod process;
mod readiness;
mod reports;
pub mod run;
mod signals;
mod sockets;
pub mod supervisor;
pub mod topology;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use lockstep_models::ModelFiles;
use lockstep_process::telemetry::LogFormat;
use lockstep_proto::Bytes;
use lockstep_shard::decoder::{ModelSpec, Precision};
use lockstep_shard::forecast::Forecast;

use crate::args::{Cli, Command, DetectArgs, DownloadArgs, PlanArgs, ServeArgs};
use crate::config::ServeConfig;
use crate::detect::{Criteria, Evidence};
use crate::error::LaunchError;
use crate::supervisor::Groups;

/// What `main` of the binary does: parses the command line, plays the role, maps the end to an exit code.
pub fn main() -> ExitCode {
    let started = Instant::now();
    let cli = Cli::read();
    let format = cli.log_format();
    match play(cli, started) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do where standard error is gone as well.
            let _ = writeln!(std::io::stderr().lock(), "{}", output::last_line(&error, format));
            ExitCode::FAILURE
        }
    }
}

fn play(cli: Cli, started: Instant) -> Result<(), LaunchError> {
    match cli.command {
        None => serve(&cli.serve, started),
        Some(Command::Serve(args)) => serve(&args, started),
        Some(Command::Router(args)) => {
            process::name_this("lockstep-router");
            Ok(lockstep_router::run(*args)?)
        }
        Some(Command::Shard(args)) => {
            process::name_this("lockstep-shard");
            Ok(lockstep_shard::run(args)?)
        }
        Some(Command::Download(args)) => download(&args),
        Some(Command::Plan(args)) => plan(&args),
        Some(Command::DetectWatermark(args)) => detect_watermark(&args),
        Some(Command::Bench(args)) => Ok(lockstep_bench::run(&args)?),
    }
}

fn serve(args: &ServeArgs, started: Instant) -> Result<(), LaunchError> {
    lockstep_process::telemetry::init(&args.log.config())?;
    foreign::warn_of_variables();
    let config = ServeConfig::from_args(args)?;
    run::serve(&config, started)
}

fn plan(args: &PlanArgs) -> Result<(), LaunchError> {
    lockstep_process::telemetry::init(&args.log.config())?;
    let files = config::find_config(args)?;
    let precision = Precision { dtype: args.dtype, quantize: args.quantize };
    let Groups { replicas, ranks } = config::groups(args.replicas, args.num_shard)?;
    let forecast =
        Forecast::new(ModelSpec::read(&files)?, precision, ranks)?.with_kv_cache(args.kv_cache_dtype);
    let text = match args.log.config().format {
        LogFormat::Text => as_text(&files, &forecast, replicas),
        LogFormat::Json => as_json(&files, &forecast, replicas),
    };
    let _ = writeln!(std::io::stdout().lock(), "{text}");
    Ok(())
}

fn as_text(files: &ModelFiles, forecast: &Forecast, replicas: u32) -> String {
    let mut text = format!("model     {files}\n{forecast}");
    if replicas > 1 {
        let weights = Bytes(forecast.weights().0.saturating_mul(u64::from(replicas)));
        text += &format!("\nreplicas  {replicas} of these, weights {weights} in all");
    }
    text
}

fn as_json(files: &ModelFiles, forecast: &Forecast, replicas: u32) -> String {
    let mut plan = forecast.to_json();
    plan["model"] = files.to_argument().into();
    plan["replicas"] = replicas.into();
    plan.to_string()
}

fn download(args: &DownloadArgs) -> Result<(), LaunchError> {
    lockstep_process::telemetry::init(&args.log.config())?;
    let name = args.model.as_ref().or(args.model_id.as_ref()).map_or("", String::as_str);
    let folder = match std::path::absolute(name) {
        // A script may name either.
        Ok(folder) if folder.is_dir() => folder,
        _ => lockstep_models::hub::download(name, &args.hub.source(args.log.config().format)?)?,
    };
    // Printed alone, so that a script can use it.
    let _ = writeln!(std::io::stdout().lock(), "{}", folder.display());
    Ok(())
}

fn detect_watermark(args: &DetectArgs) -> Result<(), LaunchError> {
    lockstep_process::telemetry::init(&args.log.config())?;
    let text = detect::read_text(args.file.as_deref())?;
    let criteria = Criteria { gamma: args.gamma, threshold: args.threshold, repeats: args.repeats };
    let evidence = Evidence::of(&detect::tokens(&text, &config::find_tokenizer(args)?)?, criteria)?;
    let printed = if args.json { evidence.to_json() } else { evidence.to_string() };
    let _ = writeln!(std::io::stdout().lock(), "{printed}");
    Ok(())
}
