// Command collector is OpenTelemetry's collector as far as a test needs it: its OTLP
// receiver, and behind that what writes each request with logs to stdout, as a line of
// OTLP's JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/consumer/consumererror"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.uber.org/zap"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "collector:", err)
		os.Exit(1)
	}
}

func run() error {
	config := flag.String("config", `{"protocols":{"grpc":{"endpoint":"127.0.0.1:4317"}}}`, "the receiver's configuration, as `JSON`")
	refuse := flag.Bool("refuse", false, "refuse all logs for good")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	factory := otlpreceiver.NewFactory()
	cfg := factory.CreateDefaultConfig()
	var m map[string]any
	if err := json.Unmarshal([]byte(*config), &m); err != nil {
		return fmt.Errorf("-config %q: %w", *config, err)
	}
	if err := confmap.NewFromStringMap(m).Unmarshal(cfg); err != nil {
		return fmt.Errorf("-config %q: %w", *config, err)
	}
	var marshal plog.JSONMarshaler
	written, err := consumer.NewLogs(func(_ context.Context, l plog.Logs) error {
		if *refuse {
			return consumererror.NewPermanent(errors.New("refused, as the test asks"))
		}
		line, err := marshal.MarshalLogs(l)
		if err != nil {
			return err
		}
		_, err = os.Stdout.Write(append(line, '\n'))
		return err
	})
	if err != nil {
		return err
	}
	settings := receiver.Settings{
		ID:                component.NewID(factory.Type()),
		TelemetrySettings: componenttest.NewNopTelemetrySettings(),
		BuildInfo:         component.NewDefaultBuildInfo(),
	}
	// The receiver's own log goes to stderr.
	if settings.Logger, err = zap.NewDevelopment(); err != nil {
		return err
	}
	r, err := factory.CreateLogs(ctx, settings, cfg, written)
	if err != nil {
		return err
	}
	if err := r.Start(ctx, componenttest.NewNopHost()); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "ready")
	<-ctx.Done()
	return r.Shutdown(context.Background())
}
