package accesslog

import (
	"bytes"
	"fmt"
	"os"
	"syscall"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

const (
	filePiece = 64 << 10 // bytes that are written to a file at once
	// pipePiece is what a pipe takes at once or not at all (PIPE_BUF): standard error has other writers.
	pipePiece = 4 << 10
	// fileMode are the permissions of a new file: its group may read.
	fileMode = 0o640
)

// stream writes lines to a file, or to standard error, whose path is empty.
type stream struct {
	// Static after New.
	encoder *encoder
	path    string
	piece   int // bytes that are written at once, unless one line is longer

	// Owned by Run.
	file *os.File
	buf  []byte
	torn bool // the last line has no end
}

// open opens the file, and closes the one before.
func (s *stream) open() error {
	// Without O_NONBLOCK a named pipe would keep us here.
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, fileMode)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return err
	}
	if kind := info.Mode(); !kind.IsRegular() && kind&os.ModeCharDevice == 0 {
		_ = f.Close()
		return fmt.Errorf("%s is not a file", s.path)
	}
	if s.file != nil {
		old, err := s.file.Stat()
		s.torn = s.torn && err == nil && os.SameFile(old, info)
		_ = s.file.Close() // everything has been written, or counted as lost
	}
	s.file = f
	return nil
}

func (s *stream) deliver(batch []stats.Record) (records, bytes int, err error) {
	s.buf = s.buf[:0]
	for i := range batch {
		line := len(s.buf)
		s.buf = append(s.encoder.appendLine(s.buf, &batch[i]), '\n')
		if len(s.buf) <= s.piece || line == 0 {
			continue
		}
		r, b, err := s.write(s.buf[:line])
		records, bytes = records+r, bytes+b
		if err != nil {
			return records, bytes, err
		}
		s.buf = append(s.buf[:0], s.buf[line:]...)
	}
	r, b, err := s.write(s.buf)
	return records + r, bytes + b, err
}

// write writes whole lines. If they are not all taken, the next call ends the torn one first.
func (s *stream) write(lines []byte) (records, written int, err error) {
	if s.torn {
		n, err := s.file.Write([]byte{'\n'})
		if err != nil {
			return 0, 0, err
		}
		s.torn, written = false, n
	}
	n, err := s.file.Write(lines)
	if n > 0 {
		s.torn = lines[n-1] != '\n'
	}
	return bytes.Count(lines[:n], []byte{'\n'}), written + n, err
}

func (s *stream) reopen() (bool, error) {
	if s.path == "" {
		return false, nil
	}
	return true, s.open()
}

func (s *stream) close() error {
	if s.path == "" {
		return nil // it is everybody's
	}
	return s.file.Close()
}
