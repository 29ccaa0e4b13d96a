package server

import (
	"io"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/systemd"
)

// levels are the levels that a configuration can name.
var levels = map[config.LogLevel]zapcore.Level{
	config.LevelDebug: zapcore.DebugLevel,
	config.LevelInfo:  zapcore.InfoLevel,
	config.LevelWarn:  zapcore.WarnLevel,
	config.LevelError: zapcore.ErrorLevel,
}

// NewLogger returns a logger that writes lines to w, which need not be safe for concurrent use, and its level, which may be
// changed. Where standard error, which w is then, leads to the journal, it makes entries of them, with a field for each of
// theirs, as the access log does.
func NewLogger(c config.Log, w io.Writer) (*zap.Logger, *zap.AtomicLevel) {
	level := zap.NewAtomicLevelAt(levels[c.Level])
	e := zap.NewProductionEncoderConfig()
	e.TimeKey, e.EncodeTime = "time", zapcore.RFC3339NanoTimeEncoder
	e.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(e)
	if c.Format == config.FormatText {
		e.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		e.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(e)
	}
	core := zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), level)
	if systemd.StderrIsJournal() {
		if j, ok := systemd.OpenJournal(); ok {
			core = newJournalCore(j, core)
		}
	}
	return zap.New(core), &level
}
