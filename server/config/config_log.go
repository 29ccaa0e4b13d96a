package config

// LogLevel is the least severe level that is logged.
type LogLevel string

// The levels, from the most to the least talkative.
const (
	LevelDebug LogLevel = "debug"
	LevelInfo  LogLevel = "info"
	LevelWarn  LogLevel = "warn"
	LevelError LogLevel = "error"
)

// LogFormat is the form of a log line.
type LogFormat string

// The formats.
const (
	FormatJSON LogFormat = "json"
	FormatText LogFormat = "text"
)

// Log says what is logged, to standard error, and in which form.
type Log struct {
	Level  LogLevel  `json:"level" default:"info" oneof:"debug info warn error"`
	Format LogFormat `json:"format" default:"json" oneof:"json text"`
}

// LogField is a field of a record of the access log.
type LogField string

// Only says which exchanges the access log is about.
type Only string

// The choices.
const (
	OnlyAll Only = "all"
	// OnlyFailed is those whose reply is not SUCCESS, that Relevo answered, or that got no answer.
	OnlyFailed Only = "failed"
)

// The paths of an access log that are no file.
const (
	PathStderr  = "stderr"
	PathJournal = "journal"
)

// AccessLog says which exchanges are recorded, where and how.
type AccessLog struct {
	// Path is PathStderr, PathJournal or the absolute path of a file.
	Path   string    `json:"path" default:"stderr" form:"log"`
	Format LogFormat `json:"format" default:"json" oneof:"json text"`
	// Fields are what a record says, in this order. There are none with FormatText.
	Fields []LogField `json:"fields,omitempty" when:"format=json" default:"all" oneof:"time listener client protocol kind service method trace rpc id upstream_id route cluster endpoint attempts status reason request_bytes reply_bytes wait server total"`
	// Template is a line in which {name} stands for the field of that name. There is none with FormatJSON.
	Template string `json:"template,omitempty" when:"format=text" default:"{time} {listener} {client} {service} {method} {route} {endpoint} {status} {reason} {wait} {server} {total}" form:"template"`
	// Sample is the share of exchanges that are recorded.
	Sample Percent `json:"sample" default:"100%" min:"0.01%" max:"100%"`
	Only   Only    `json:"only" default:"all" oneof:"all failed"`
	// Buffer is the number of records that wait to be written. More are dropped and counted.
	Buffer int `json:"buffer" default:"8192" min:"1" max:"1000000"`
}
