package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/spate-project/spate/cmd/internal/ui"
)

// An app is one run of the program: what all its commands share.
type app struct {
	out      *ui.Output
	logLevel slog.Level
	config   string
}

func newApp(stdout, stderr io.Writer) *app {
	return &app{out: ui.New(stdout, stderr), logLevel: slog.LevelWarn}
}

const rootHelp = `spate brings container images and models to many nodes at once, fast, and
lets no unsigned byte in.

A registry stores models and introduces nodes to each other; an agent on each
node fetches what is read, from peers and from the registry, checks every piece
against a signed index, and shows the model as files.

Every flag is also an environment variable (--sign-key is SPATE_SIGN_KEY) and a
key of the YAML file that --config names (sign-key: cosign.key); the command
line wins over the environment, the environment over the file.`

// exitCodes ends every command's help.
const exitCodes = `
Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not trusted, nothing was fetched;
4 deadline passed, partly done.
`

func (a *app) root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "spate",
		Short: "Bring images and models to many nodes at once, signed to the last byte",
		Long:  rootHelp,
		Example: `  # the whole story on one machine, without set-up
  spate demo

  # one registry and one node
  spate registry --data /var/lib/spate-registry
  spate agent --registry http://127.0.0.1:5000 --key cosign.pub
  spate push ./qwen 127.0.0.1:5000/qwen:v1 --sign-key cosign.key
  spate mount 127.0.0.1:5000/qwen:v1 /mnt/qwen`,
		SilenceErrors: true, // execute prints them, once
		SilenceUsage:  true,
		Args:          a.args(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetUsageTemplate(cmd.UsageTemplate() + exitCodes)
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	f := cmd.PersistentFlags()
	f.Var(&a.out.Format, "output", "how to write results: text or json")
	f.TextVar(&a.logLevel, "log-level", a.logLevel, "least level of log messages: debug, info, warn or error")
	f.StringVar(&a.config, "config", "", "YAML `file` with flags as keys")
	cmd.AddCommand(
		a.demoCommand(), a.registryCommand(), a.agentCommand(), a.pushCommand(), a.pullCommand(), a.copyCommand(), a.exportCommand(), a.importCommand(), a.indexCommand(),
		a.verifyCommand(), a.signCommand(), a.attestCommand(), a.policyCommand(), a.imageVerifierCommand(), a.mountCommand(), a.umountCommand(), a.prefetchCommand(), a.warmCommand(), a.placementCommand(), a.traceCommand(), a.statusCommand(), a.loadCommand(), a.limitCommand(), a.cacheCommand(), a.liarCommand(), a.holderCommand(), a.labCommand(), a.sweepCommand(),
	)
	return cmd
}

// usage marks err as a wrong command line.
func usage(err error) error { return ui.WithCode(err, ui.ExitUsage) }

// args is check whose errors are of wrong usage. Cobra calls it before all
// else, so that the configuration is read here.
func (a *app) args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := a.configure(cmd.Flags()); err != nil {
			return err
		}
		if err := check(cmd, args); err != nil {
			return ui.WithHint(usage(err), fmt.Sprintf("see `%s --help`", cmd.CommandPath()))
		}
		return nil
	}
}

// configure fills in flags that the command line does not set: from the
// environment, else from the configuration file.
func (a *app) configure(flags *pflag.FlagSet) error {
	path := a.config
	if path == "" {
		path = os.Getenv(envName("config"))
	}
	file := map[string]any{}
	if path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return usage(fmt.Errorf("read the configuration: %w", err))
		}
		numbers := func(d *json.Decoder) *json.Decoder { d.UseNumber(); return d } // as they are written
		if err := yaml.UnmarshalStrict(b, &file, numbers); err != nil {
			return usage(fmt.Errorf("read the configuration %s: %v", path, err))
		}
	}
	var errs []error
	set := func(f *pflag.Flag, from string, values ...string) {
		for _, v := range values {
			if err := flags.Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("%s: %v", from, err))
			}
		}
	}
	flags.VisitAll(func(f *pflag.Flag) {
		value, inFile := file[f.Name]
		env, inEnv := os.LookupEnv(envName(f.Name))
		switch {
		case f.Changed:
		case inEnv:
			set(f, envName(f.Name), env)
		case inFile:
			if list, ok := value.([]any); ok {
				for _, v := range list {
					set(f, path, fmt.Sprint(v))
				}
			} else {
				set(f, path, fmt.Sprint(value))
			}
		}
		delete(file, f.Name)
	})
	for key := range file {
		errs = append(errs, fmt.Errorf("%s: this command has no key %q", path, key))
	}
	return usage(errors.Join(errs...))
}

func envName(flag string) string {
	return "SPATE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// logger writes to where messages go.
func (a *app) logger() *slog.Logger {
	opts := &slog.HandlerOptions{Level: a.logLevel}
	if a.out.Format == ui.JSON {
		return slog.New(slog.NewJSONHandler(a.out.Messages(), opts))
	}
	return slog.New(slog.NewTextHandler(a.out.Messages(), opts))
}
